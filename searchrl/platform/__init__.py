"""Settings, servers, authorization, errors, metrics, traces and logs, shared by all services."""
