#!/bin/sh
# Write the data folder to an archive that only its owner can read: backup.sh DATA_DIR ARCHIVE.tar.gz
# Stop the service first: history, checkpoints and the key that signs them belong together.
set -eu
umask 077
tar --create --gzip --file "$2.part" --directory "$1" .
mv "$2.part" "$2"
