"""Files and texts of others: read within bounds, written completely or not at all, and made safe to print."""
