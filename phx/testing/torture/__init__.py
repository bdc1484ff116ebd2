"""``phx torture``: real processes, real faults, and a search for any promise that was broken.

Read run.py first: it says what happens when. What the seed decides stands in schedule.py, what a
run is judged by in verdict.py; those two touch nothing and are tested on their own.
"""
