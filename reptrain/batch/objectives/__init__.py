"""Objectives: what is predicted from what. One file each."""
