"""Pictures and charts for people, as RGB arrays."""
