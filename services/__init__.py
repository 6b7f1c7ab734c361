"""The four services. Each is a folder that never imports another; what they share lives in ``searchrl``."""
