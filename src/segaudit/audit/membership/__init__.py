"""Membership experiments: who was in the training set, and what the networks that were trained say of it."""
