"""Control of runs from outside: constraints that hold back tasks, limit them, or change the capacity of resources."""
