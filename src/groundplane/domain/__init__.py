"""The mind: pure decisions on frozen values. No I/O, no clock, no chance, no framework."""
