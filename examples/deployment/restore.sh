#!/bin/sh
# Replace an empty or missing data folder by an archive of backup.py: restore.sh ARCHIVE.tar.gz DATA_DIR
set -eu
umask 077
mkdir -p "$2"
if [ -n "$(ls -A "$2")" ]; then
    echo "$2 is not empty; nothing was restored" >&2
    exit 1
fi
tar --extract --gzip --preserve-permissions --file "$1" --directory "$2"
