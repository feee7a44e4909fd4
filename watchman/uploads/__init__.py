"""What everybody speaks of: files, what is said of them, and the uploads that they become.

Values (`upload`), and how a file, its owner, its filesystem and a session's process are looked at.
Runs in whichever thread asks. Everybody may import it, and it imports nothing of ours but errors.
"""
