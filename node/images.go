package node

import (
	"context"
	"io"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/image"
)

// images is the image store as control and host ask for it.
type images struct{ *image.Store }

func (s images) Put(ctx context.Context, d volant.Digest, r io.Reader) error {
	return s.Store.Put(ctx, d, r)
}

func (s images) Prepare(ctx context.Context, d volant.Digest, progress func(phase string, done, total int64)) error {
	_, err := s.Convert(ctx, d, func(p image.Progress) {
		if progress != nil {
			progress(p.Phase, p.Done, p.Total)
		}
	})
	return err
}

// hostImages is the same for the host, whose word for a root disk is its own.
type hostImages struct{ *image.Store }

func (s hostImages) Rootfs(ctx context.Context, d volant.Digest) (host.Rootfs, error) {
	r, err := s.Store.Rootfs(ctx, d)
	c := r.Config
	return host.Rootfs{
		Path: r.Path, Type: r.Type, Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env,
		User: c.User, WorkDir: c.WorkingDir, StopSignal: c.StopSignal,
	}, err
}
