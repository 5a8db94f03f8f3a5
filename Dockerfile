# The build and the image that runs share one Debian release, and so one glibc.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /build

# A layer of its own for the dependencies: it changes only with Cargo.toml and Cargo.lock. Cargo
# wants a file for the library and the binary; the empty ones are gone from the next layer on.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
    && touch src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --locked --release --bin token-broker \
    && rm -r src

# Profiles, default settings and migrations are embedded in the binary.
COPY src src
COPY config config
COPY migrations migrations
# Cargo goes by time: the sources may be older than what was built from the empty ones.
RUN find src -name '*.rs' -exec touch {} + \
    && cargo build --locked --release --bin token-broker

# Debian's slim image with nothing installed on top: the binary needs glibc 2.34 or later and no
# other file, for even the root certificates are compiled in. An image without a shell would be
# smaller still; this one is official, of the same release as the build, and an operator can look
# around in it.
FROM debian:bookworm-slim

# A fixed number, so that volumes and secrets can be given to it; there need not be a name for it.
ARG UID=10001
RUN install -d -m 0700 -o ${UID} -g ${UID} /var/lib/token-broker
COPY --from=build /build/target/release/token-broker /usr/local/bin/
USER ${UID}:${UID}
WORKDIR /var/lib/token-broker
# One volume for each replica: lock, spool and, without a database server, everything else.
VOLUME /var/lib/token-broker

# Consent pages and callbacks, for the TLS proxy in front. The internal listener, with the tokens,
# stays on the container's own loopback until TOKEN_BROKER__INTERNAL_LISTEN says otherwise, as
# config/deploy/compose.yaml does.
ENV TOKEN_BROKER__PUBLIC_LISTEN=0.0.0.0:8080
EXPOSE 8080 8081

HEALTHCHECK --interval=15s --timeout=5s --start-period=20s CMD ["token-broker", "healthcheck"]
ENTRYPOINT ["token-broker"]
CMD ["serve"]
