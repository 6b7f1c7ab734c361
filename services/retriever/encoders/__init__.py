"""Encoders: turning texts into vectors. Only here may torch be used, imported when an encoder is opened."""
