"""The program beside a job: starts it, keeps its log and samples, finds its checkpoints, ends it when a limit says so.

A folder of standard-library files for any Python ≥ 3.9 on Linux, copied to nodes as it is; only executors import it. It
obeys its order and the node's own clocks, so limits hold while the control plane is down. docs/guides/jobs.md is the
contract with the job. A life (life.py): lock → "starting" recorded → newest checkpoint verified → fork → pump, enforce,
measure, reap → clear → "ended".
"""
