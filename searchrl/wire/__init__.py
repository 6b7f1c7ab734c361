"""Pure functions that convert protobuf messages to domain records and back."""
