package debimage

import (
	_ "embed" // the page that the demo's nginx serves

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// definitions are the images there are.
func definitions() map[string]definition {
	return map[string]definition{
		"nginx": nginx(), "redis": redis(), "sshd": sshd(), "mosquitto": mosquitto(), "testserver": testserver(),
	}
}

func config(ports []string, args ...string) v1.Config {
	c := v1.Config{Cmd: args, Env: []string{searchPath}, WorkingDir: "/", ExposedPorts: make(map[string]struct{})}
	for _, p := range ports {
		c.ExposedPorts[p+"/tcp"] = struct{}{}
	}
	return c
}

//go:embed index.html
var page string

// nginxConf is small, so that it starts fast: one worker. A client may stay idle for an hour, since
// the demo holds connections open and Volant has timeouts of its own.
const nginxConf = `daemon off;
user www-data;
pid /run/nginx.pid;
worker_processes 1;
worker_rlimit_nofile 65536;
error_log stderr notice;

events {
    worker_connections 16384;
}

http {
    include mime.types;
    default_type application/octet-stream;
    access_log off;
    sendfile on;
    keepalive_timeout 3600s;
    keepalive_requests 1000000;
    client_header_timeout 3600s;
    server_tokens off;

    server {
        listen 80 backlog=4096;
        listen 8080 backlog=4096;
        root /srv/www;
        add_header X-Machine $hostname always;

        location = /machine {
            default_type text/plain;
            return 200 "$hostname\n";
        }
    }
}
`

func nginx() definition {
	const www = 33
	t := tree{
		"etc/nginx/nginx.conf": text(0o644, nginxConf),
		"srv":                  dir(0o755, 0, 0), "srv/www": dir(0o755, 0, 0), "srv/www/index.html": text(0o644, page),
		"var/lib/nginx": dir(0o755, 0, 0), "var/log/nginx": dir(0o755, 0, 0),
	}
	for _, d := range []string{"body", "fastcgi", "proxy", "scgi", "uwsgi"} {
		t["var/lib/nginx/"+d] = dir(0o700, www, 0)
	}
	c := config([]string{"80", "8080"}, "nginx", "-c", "/etc/nginx/nginx.conf")
	c.StopSignal = "SIGQUIT" // ends when the last request is answered
	return definition{
		packages: []string{"nginx", "nginx-common"}, users: []user{{"www-data", www, "/srv/www"}}, files: t, config: c,
	}
}

const redisConf = `bind * -::*
port 6379
protected-mode no
daemonize no
dir /var/lib/redis
save ""
appendonly no
tcp-backlog 511
`

func redis() definition {
	const id = 101
	c := config([]string{"6379"}, "redis-server", "/etc/redis/redis.conf")
	c.User = "redis"
	return definition{
		packages: []string{"redis-server", "redis-tools"}, users: []user{{"redis", id, "/var/lib/redis"}}, config: c,
		files: tree{
			"etc/redis": dir(0o755, 0, 0), "etc/redis/redis.conf": text(0o644, redisConf),
			"var/lib/redis": dir(0o750, id, id), "var/log/redis": dir(0o750, id, id),
		},
	}
}

const sshdConf = `Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
AuthorizedKeysFile .ssh/authorized_keys
Subsystem sftp /usr/lib/openssh/sftp-server
`

func sshd() definition {
	return definition{
		packages: []string{"openssh-server", "openssh-sftp-server"}, users: []user{{"sshd", 102, "/run/sshd"}},
		config: config([]string{"22"}, "/usr/sbin/sshd", "-D", "-e"),
		files: tree{
			"etc/ssh": dir(0o755, 0, 0), "etc/ssh/sshd_config": text(0o644, sshdConf),
			"etc/ssh/ssh_host_ed25519_key": text(0o600, privateKey(HostKey())),
			"root/.ssh":                    dir(0o700, 0, 0), "root/.ssh/authorized_keys": text(0o600, publicKey(ClientKey())),
			"run/sshd": dir(0o755, 0, 0),
		},
	}
}

const mosquittoConf = `listener 1883
allow_anonymous true
persistence false
log_dest stderr
user mosquitto
`

func mosquitto() definition {
	const id = 103
	return definition{
		packages: []string{"mosquitto"}, users: []user{{"mosquitto", id, "/var/lib/mosquitto"}},
		config: config([]string{"1883"}, "mosquitto", "-c", "/etc/mosquitto/mosquitto.conf"),
		files: tree{
			"etc/mosquitto": dir(0o755, 0, 0), "etc/mosquitto/mosquitto.conf": text(0o644, mosquittoConf),
			"var/lib/mosquitto": dir(0o750, id, id), "var/log/mosquitto": dir(0o750, id, id),
		},
	}
}

func testserver() definition {
	return definition{
		program: "volanttest/testserver/cmd/testserver",
		config:  config([]string{"8080"}, "/usr/bin/testserver"),
	}
}
