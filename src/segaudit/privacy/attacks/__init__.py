"""Membership attacks, one a file: which of the images was this network trained on?"""
