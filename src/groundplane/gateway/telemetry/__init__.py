"""What the gateway shows of itself.

Metrics and reports come from its workers; spans, predictions and live requests from a recorder, a process of its own.
"""
