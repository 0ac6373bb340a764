"""What every room uses: checks of arguments, files that are whole or not there, several processes, lazy exports.

It imports no other room.
"""
