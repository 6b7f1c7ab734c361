"""The two servers of every service, gRPC and REST: keys, TLS, errors, start and stop."""
