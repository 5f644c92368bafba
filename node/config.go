package node

import (
	"log/slog"
	"net/netip"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/cert"
	"github.com/volant-edge/volant/join"
)

// Config is a server's configuration. Its zero value, with a data directory, is one whole node.
type Config struct {
	Data   string        `toml:"data"`   // data directory; /var/lib/volant
	Region volant.Region `toml:"region"` // where this server is; "local"
	Name   string        `toml:"name"`   // the host name if empty
	Domain string        `toml:"domain"` // apps have names below it; "localhost"
	// Roles are what a new server does: edge, host, control. All on the first of a cluster, edge and host on one that
	// joins. Later its record says.
	Roles []string    `toml:"roles,omitempty"`
	Join  JoinConfig  `toml:"join"`
	Mesh  MeshConfig  `toml:"mesh"`
	API   APIConfig   `toml:"api"`
	Edge  EdgeConfig  `toml:"edge"`
	Host  HostConfig  `toml:"host"`
	Image ImageConfig `toml:"image"`
	Store StoreConfig `toml:"store"`

	Log     *slog.Logger `toml:"-"` // nil discards
	Version string       `toml:"-"`
	// Crash is called at each named write-ahead point of the host, before and after; nil does nothing.
	Crash func(point, when string) `toml:"-"`
}

// JoinConfig says which cluster a new server joins. Once it has, it is not looked at.
type JoinConfig struct {
	Server    string `toml:"server,omitempty"` // HOST:PORT of a control node; empty: it is the first of its cluster
	Token     string `toml:"-"`
	TokenFile string `toml:"token_file,omitempty"`
}

// MeshConfig says how servers reach each other.
type MeshConfig struct {
	// Endpoint is HOST:PORT at which other servers reach this one by UDP, and by TCP when they join; without it a
	// server that did not join is alone. On one that joins, a missing host is the one that it is seen with.
	Endpoint   string `toml:"endpoint,omitempty"`
	JoinListen string `toml:"join_listen,omitempty"` // where servers join; the endpoint's port on all addresses
	Listen     uint16 `toml:"listen"`                // UDP port of WireGuard; the endpoint's, or 4281
	MTU        int    `toml:"mtu"`                   // of the mesh; 0 takes what the links leave
	Engine     string `toml:"engine"`                // auto (kernel where it can), kernel, user
	RotateDays int    `toml:"rotate_days"`           // age at which the mesh key is replaced; 0 never
}

// APIConfig says where the API listens.
type APIConfig struct {
	Listen string `toml:"listen"` // 127.0.0.1:4280; port 0 takes a free one, written to api.addr
}

// EdgeConfig says which addresses apps get.
type EdgeConfig struct {
	Pool4 netip.Prefix `toml:"pool4"` // 127.77.0.0/16
	Pool6 netip.Prefix `toml:"pool6"` // fd77::/64
	// Shared4 is the IPv4 address that apps share, told apart by their host names; out of pool4 if not set.
	// 127.0.0.1 makes https://APP.localhost work on this machine.
	Shared4 netip.Addr `toml:"shared4,omitempty"`
}

// HostConfig says how machines run here.
type HostConfig struct {
	Engine        string       `toml:"engine"`            // auto (probe), qemu, fake
	Private4      netip.Prefix `toml:"private4"`          // machines' addresses; 172.27.0.0/16
	MemoryReserve int          `toml:"memory_reserve_mb"` // kept for the server; an eighth, at least 512
	AllowMixed    bool         `toml:"allow_mixed"`       // several organizations on an engine that does not isolate them
	ScratchMB     int          `toml:"scratch_mb"`        // writable disk of a machine; 8192, sparse
	KernelDir     string       `toml:"kernel_dir"`        // made by `volant setup kernel`; DATA/kernel
	ShmDir        string       `toml:"shm_dir"`           // memory of awake machines; a tmpfs; /dev/shm
	NoTemplates   bool         `toml:"no_templates"`      // always boot cold what does not sleep
	FakeBackend   string       `toml:"fake_backend"`      // engine fake: IP address that stands for each machine, or an IPv6 prefix of one for each
}

// ImageConfig bounds images, and where they are pulled from.
type ImageConfig struct {
	MaxSizeMB int      `toml:"max_size_mb"`         // unpacked; 8192
	QuotaMB   int      `toml:"quota_mb"`            // of all images of one organization; 65536; below 0 none
	Insecure  []string `toml:"insecure_registries"` // HOST or HOST:PORT; spoken to without TLS if they have none
	Private   []string `toml:"private_registries"`  // HOST or HOST:PORT; in the server's own network, for every organization
}

func (c Config) withDefaults() Config {
	str := func(s *string, def string) {
		if *s == "" {
			*s = def
		}
	}
	prefix := func(p *netip.Prefix, def string) {
		if !p.IsValid() {
			*p = netip.MustParsePrefix(def)
		}
	}
	str(&c.Data, "/var/lib/volant")
	str((*string)(&c.Region), "local")
	str(&c.Domain, DefaultDomain)
	str(&c.API.Listen, api.DefaultAddr)
	str(&c.Host.Engine, "auto")
	str(&c.Mesh.Engine, "auto")
	str(&c.Host.ShmDir, "/dev/shm")
	str(&c.Host.KernelDir, c.Data+"/kernel")
	prefix(&c.Edge.Pool4, "127.77.0.0/16")
	prefix(&c.Edge.Pool6, "fd77::/64")
	prefix(&c.Host.Private4, "172.27.0.0/16")
	if c.Host.ScratchMB == 0 {
		c.Host.ScratchMB = 8192
	}
	if c.Image.MaxSizeMB == 0 {
		c.Image.MaxSizeMB = 8192
	}
	if c.Image.QuotaMB == 0 {
		c.Image.QuotaMB = 64 << 10
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// check says what is wrong with the configuration, or nil.
func (c *Config) check() error {
	if _, err := cert.Hostname("app." + c.Domain); err != nil || strings.HasPrefix(c.Domain, "*.") {
		return volant.Invalidf("domain %q: use a domain such as example.com, below which apps have their names", c.Domain)
	}
	if len(c.Roles) > 0 {
		if err := join.CheckRoles(c.Roles); err != nil {
			return err
		}
	}
	if c.Mesh.Endpoint != "" {
		if _, _, err := hostPort(c.Mesh.Endpoint); err != nil {
			return volant.Invalidf("mesh.endpoint: %v", err)
		}
	}
	if err := c.Store.check(); err != nil {
		return err
	}
	if err := c.Mesh.check(); err != nil {
		return err
	}
	switch {
	case !c.Region.Valid():
		return volant.Invalidf("region %q: use 2 to 8 lower-case letters and digits", c.Region)
	case c.Host.Engine != "auto" && c.Host.Engine != "qemu" && c.Host.Engine != "fake":
		return volant.Invalidf("host.engine %q: use auto, qemu or fake", c.Host.Engine)
	case c.Host.Engine == "fake" && c.Host.FakeBackend == "":
		return volant.Invalidf("host.engine is fake, which needs host.fake_backend").WithRemedy("set it to the IP address of the process that answers for the machines")
	case !c.Edge.Pool4.Addr().Is4() || !c.Edge.Pool6.Addr().Is6():
		return volant.Invalidf("edge.pool4 and edge.pool6 are an IPv4 and an IPv6 prefix, not %s and %s", c.Edge.Pool4, c.Edge.Pool6)
	case c.Host.ScratchMB < 0 || c.Host.ScratchMB > maxScratchMB:
		return volant.Invalidf("host.scratch_mb is %d: use 1 to %d", c.Host.ScratchMB, maxScratchMB)
	case c.Edge.Shared4.IsValid() && !c.Edge.Shared4.Is4():
		return volant.Invalidf("edge.shared4 is an IPv4 address, not %s", c.Edge.Shared4)
	case !c.Host.Private4.Addr().Is4() || c.Host.Private4.Bits() > 28:
		return volant.Invalidf("host.private4 %s: use an IPv4 prefix of at most 28 bits", c.Host.Private4)
	}
	return nil
}

// maxScratchMB is below the size of a template's disks.
const maxScratchMB = 4 << 20

// wakeWithin bounds how long the host may take to put a wake on record.
const wakeWithin = 5 * time.Second

// bootGrace is how long the first catalog may take before the server gives up on its start.
const bootGrace = 30 * time.Second
