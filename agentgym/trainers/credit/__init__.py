"""Who deserved what: functions from finished trees to streams on their tokens."""
