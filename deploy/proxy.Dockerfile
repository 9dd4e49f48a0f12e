# Caddy for the profile tls, as a user without rights.
FROM caddy:2.10
# A copy has no file capability: with one, the kernel refuses to run it in a container that has given all of them up. It
# listens on ports above 1024.
RUN cp /usr/bin/caddy /usr/bin/plain-caddy && mkdir -p /data && chown 10005:10005 /data
ENV XDG_DATA_HOME=/data XDG_CONFIG_HOME=/tmp HOME=/tmp
USER 10005:10005
EXPOSE 8080 8443
ENTRYPOINT ["plain-caddy"]
CMD ["run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]
