"""Encoders turn texts into vectors. Only this package may use torch, which is imported when an encoder is opened."""
