"""The commands of ``eventtrain``, one file each; ``make()`` in it makes the command.

Click, torch and whatever else a command needs are imported inside of functions:
listing the commands must not load them.
"""
