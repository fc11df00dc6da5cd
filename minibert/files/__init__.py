"""From bytes on a disk or the hub to named arrays and token tables. The bytes may be hostile; nothing is run."""
