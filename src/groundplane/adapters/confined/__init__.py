"""Programs that touch what nobody has vouched for: each in a process that has given up network, files and identity."""
