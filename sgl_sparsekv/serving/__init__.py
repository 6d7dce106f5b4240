"""What users of a server meet: request options, refusals, the echo, counters and the trace."""
