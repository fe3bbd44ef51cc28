"""The program that writes docs/tour.md."""
