"""Experiments about the pipeline itself: does it find skill where none is, and the skill that was planted?"""
