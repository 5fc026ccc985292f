#!/bin/sh
# For each name given: a bucket of this name in MinIO, a key that may write it, a key that may only read it, and a file
# /keys/NAME.toml that tells a neuron of both. Runs in MinIO's client image; what is there already stays as it is.
set -eu

export MC_HOST_minio="http://$MINIO_ROOT_USER:$MINIO_ROOT_PASSWORD@minio:9000"

random() { # so many bytes, as hexadecimal digits
  od -An -tx1 -N"$1" /dev/urandom | tr -d ' \n'
}

grant() { # user, secret, bucket, and what it may do there
  printf '%s\n%s\n' "$1" "$2" | mc admin user add minio
  cat > "/tmp/$1.json" <<POLICY
{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": [$4],
  "Resource": ["arn:aws:s3:::$3", "arn:aws:s3:::$3/*"]}]}
POLICY
  mc admin policy create minio "$1" "/tmp/$1.json"
  mc admin policy attach minio "$1" --user "$1"
}

for name in "$@"; do
  [ ! -f "/keys/$name.toml" ] || continue
  write=$(random 20) read=$(random 20)
  mc mb --ignore-existing "minio/$name"
  grant "$name-write" "$write" "$name" '"s3:*"'
  grant "$name-read" "$read" "$name" '"s3:GetObject", "s3:ListBucket"'
  cat > "/keys/$name.new" <<SETTINGS
bucket = "http://minio:9000/$name"
write_key_id = "$name-write"
write_secret = "$write"
read_key_id = "$name-read"
read_secret = "$read"
SETTINGS
  chmod 600 "/keys/$name.new"
  chown 1000:1000 "/keys/$name.new" # whom the image of the neurons runs as
  mv "/keys/$name.new" "/keys/$name.toml"
done
