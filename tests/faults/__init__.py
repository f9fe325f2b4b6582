"""Kill real processes of the kit at chosen moments, go on, and compare with what was undisturbed.

`python -m tests.faults --faults 100` does it at length (`make faults`), and
tests/test_fault_harness.py a
little of it.
"""
