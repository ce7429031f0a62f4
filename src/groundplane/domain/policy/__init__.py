"""The rules that every plan is judged by: the built-in ones in Python and in CEL, and the operator's own in CEL.

subject → `view` → rules of a `RuleSet` → verdicts → exceptions that still hold → what the plan shows
"""

from groundplane.domain.policy.builtin import RULES as RULES
from groundplane.domain.policy.builtin import Finding as Finding
from groundplane.domain.policy.builtin import Rule as Rule
from groundplane.domain.policy.builtin import Subject as Subject
from groundplane.domain.policy.builtin import judge as judge
from groundplane.domain.policy.builtin import reference as reference
