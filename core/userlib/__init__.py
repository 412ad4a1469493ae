"""What any task may import: interfaces, servers, clients and the line to the kernel."""
