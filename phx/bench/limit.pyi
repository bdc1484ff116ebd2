# Nothing for Python; see limit_door.
