"""The rules that every plan is judged by: built-in ones in Python and in CEL, and the operator's own in CEL.

subject → `view` → the rules of a `rule_set` → verdicts → `exceptions` that still hold → what the plan shows
"""
