"""Control from outside: what may start now, later, or only so many at a time."""
