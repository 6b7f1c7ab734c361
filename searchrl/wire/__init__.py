"""Messages to domain records and back; pure functions."""
