"""The paper in miniature: claims, the runs that test them, and what came out."""
