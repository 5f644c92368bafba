package node

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/doctor"
	"github.com/volant-edge/volant/mesh"
)

// meshSilent is when a node counts as silent: sessions are renewed each two minutes.
const meshSilent = 3*time.Minute + 10*time.Second

// lookMesh looks at the mesh of a server; nil where there is none and none is configured.
func lookMesh(cfg MeshConfig, dir *datadir.Dir) func(context.Context) doctor.Mesh {
	joined := false
	if dir != nil {
		last, ok, err := mesh.Last(dir)
		joined = err == nil && ok && len(last.Peers) > 0
	}
	if cfg.Endpoint == "" && !joined {
		return nil
	}
	return func(ctx context.Context) doctor.Mesh {
		m := doctor.Mesh{Port: cfg.port()}
		if dir != nil {
			if st, up := mesh.Look(ctx, dir); up {
				seen(&m, st, time.Now())
				return m
			}
		}
		if cfg.Engine != "user" {
			m.Kernel = mesh.KernelHas("00000000") // an interface that is gone at once
		} else {
			m.Kernel = fmt.Errorf("mesh.engine is user")
		}
		var lc net.ListenConfig
		c, err := lc.ListenPacket(ctx, "udp", fmt.Sprintf(":%d", m.Port))
		if err != nil {
			m.PortErr = err
			return m
		}
		_ = c.Close() // nothing was sent
		return m
	}
}

// seen takes over what the mesh says of itself.
func seen(m *doctor.Mesh, st mesh.Status, now time.Time) {
	m.Running, m.MTU = true, st.MTU
	if st.Engine == "user" {
		m.Kernel = fmt.Errorf("process %d", st.PID)
	}
	for _, p := range st.Peers {
		if !p.Active {
			continue // a key that is about to be used, or was
		}
		m.Peers++
		if now.Sub(p.Handshake) > meshSilent {
			m.Silent = append(m.Silent, string(p.Node))
		}
		if p.MTU > 0 && p.MTU < st.MTU {
			m.Narrow = append(m.Narrow, fmt.Sprintf("%s (%d)", p.Node, p.MTU))
		}
	}
}
