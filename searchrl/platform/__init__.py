"""What every service does the same way: settings, servers, auth, errors, metrics, logs."""
