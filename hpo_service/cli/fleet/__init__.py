"""Workers on engines that keep processes alive: a file each, one table. The server knows nothing of it."""
