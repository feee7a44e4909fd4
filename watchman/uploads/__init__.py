"""What all other folders share: files, notifications about them, and uploads.

`upload` has the values that are passed around. The other modules look at files, owners, filesystems
and the processes of FTP sessions. Nothing comes in or goes out on its own: all of it runs in the
thread that calls it. Every folder may import it, and it imports only `errors` of ours.
"""
