"""Docker containers: create, restrict, measure and remove them. This package never looks at what runs inside."""
