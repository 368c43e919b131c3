"""C++ that the machine's own compiler builds, kept on disk.

Of the package it imports ``errors`` only.
"""
