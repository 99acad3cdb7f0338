"""Control of runs from outside: constraints that block tasks, limit them, or change the capacity of resources."""
