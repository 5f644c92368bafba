package doctor

import (
	"fmt"
	"strings"
)

// Mesh is what is seen of a server's end of the mesh.
type Mesh struct {
	Port    uint16 // UDP
	PortErr error  // why nobody could listen there; nil while the mesh itself does
	Kernel  error  // why the kernel's WireGuard is not used; nil: it is
	Running bool   // the mesh is up; the rest is about it
	MTU     int
	Peers   int
	Silent  []string // nodes that have not answered for some minutes
	Narrow  []string // nodes on whose path packets must be smaller than the mesh's MTU, and how small
}

// silentMost is how many nodes a finding names.
const silentMost = 5

func judgeMesh(f Facts) []Finding {
	m := f.Mesh
	engine := ok("wireguard", "the kernel's")
	if m.Kernel != nil {
		engine = ok("wireguard", "in a process of its own, volant mesh: %v", m.Kernel)
		if f.Tun != nil {
			engine = engine.worse(Fail, "load a module: modprobe wireguard, or else modprobe tun")
		}
	}
	out := []Finding{engine}
	if !m.Running {
		port := ok("mesh", "not up; UDP port %d is free", m.Port)
		if m.PortErr != nil {
			port = ok("mesh", "UDP port %d: %v", m.Port, m.PortErr).worse(Fail, "free the port, or set mesh.listen and mesh.endpoint to another one")
		}
		return append(out, port)
	}
	up := ok("mesh", "up on UDP port %d, MTU %d; %d of %d nodes answer", m.Port, m.MTU, m.Peers-len(m.Silent), m.Peers)
	switch {
	case m.Peers > 0 && len(m.Silent) == m.Peers:
		up = up.worse(Warn, fmt.Sprintf("let UDP port %d in, here and at the others; see that mesh.endpoint is the address at which others reach this server", m.Port))
	case len(m.Silent) > 0:
		up = up.worse(Warn, "silent: "+some(m.Silent)+"; see that they run and that UDP gets through between them and this server")
	}
	out = append(out, up)
	if len(m.Narrow) > 0 {
		out = append(out, ok("mesh-paths", "packets are made smaller on the way to %s", some(m.Narrow)))
	}
	return out
}

func some(names []string) string {
	if len(names) > silentMost {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:silentMost], ", "), len(names)-silentMost)
	}
	return strings.Join(names, ", ")
}
