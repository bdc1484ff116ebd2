// What the C++ that Cython makes of every module includes, for .ci/compile: parsed once, not for
// each of them. Nothing of phx is here: each build has its own copies of phx's headers.
#define PY_SSIZE_T_CLEAN
#include "Python.h"

#include "compile.h"
#include "frameobject.h"
#include "pythread.h"
#include "structmember.h"
#include "traceback.h"

#include <pthread.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <vector>
