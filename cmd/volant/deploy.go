package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/appfile"
	"github.com/volant-edge/volant/client"
)

func newDeploy(g *globals) *cobra.Command {
	var app, ref, file string
	var allow, detach, local bool
	cmd := &cobra.Command{
		Use: "deploy --app NAME --image IMAGE [--config volant.toml]", Args: cobra.NoArgs,
		Short: "Bring an image and a config into service, without closing a connection",
		Long:  "Bring an image and a config into service, without closing a connection.\n\n" + imageForms,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := readAppfile(file, appfile.Options{AllowUnsupported: allow, HasImage: ref != ""})
			if err != nil {
				return err
			}
			if app == "" {
				app = f.App
			}
			if app == "" {
				return fmt.Errorf("which app? name it with --app, or with app = \"NAME\" in the config")
			}
			if ref == "" {
				ref = f.Image
			}
			if ref == "" {
				return fmt.Errorf("which image? name it with --image: [REGISTRY/]NAME[:TAG], docker-archive:FILE, oci-archive:FILE or oci:DIR")
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			d := &deployment{c: c, out: cmd.ErrOrStderr(), app: app, quiet: g.json, local: local}
			r, err := d.run(cmd.Context(), ref, f, detach)
			if err != nil {
				return err
			}
			return g.print(cmd, r, func(w io.Writer) {
				fmt.Fprintf(w, "Release %d of %s is %s.\n", r.Version, app, r.Status)
				if len(r.Addresses) > 0 {
					fmt.Fprintf(w, "Reach it at %s\n", strings.Join(r.Addresses, " and "))
				}
			})
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&app, "app", "a", "", "the app; by default the one the config names")
	fl.StringVarP(&ref, "image", "i", "", "[REGISTRY/]NAME[:TAG], docker-archive:FILE, oci-archive:FILE or oci:DIR")
	fl.StringVarP(&file, "config", "c", "", "the app's config (default: volant.toml here, if there is one)")
	fl.BoolVar(&allow, "allow-unsupported", false, "ignore keys of fly.toml that are not acted on yet")
	fl.BoolVar(&local, "local", false, "pull the image on this machine and upload it, instead of letting the server pull it")
	fl.BoolVar(&detach, "detach", false, "do not wait for the outcome")
	return cmd
}

// readAppfile reads the named config, or the one of this directory, or none.
func readAppfile(name string, opt appfile.Options) (*appfile.File, error) {
	for _, try := range appfile.Names {
		if _, err := os.Stat(try); err == nil && name == "" {
			name = try
		}
	}
	if name == "" {
		return &appfile.File{}, nil
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, volant.Errorf(volant.ErrNotFound, "config: %v", err)
	}
	opt.ReadFile = func(path string) ([]byte, error) {
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(name), path)
		}
		return os.ReadFile(path)
	}
	return appfile.Parse(name, b, opt)
}

// deployment is one run of `volant deploy`.
type deployment struct {
	c     *client.Client
	out   io.Writer
	app   string
	quiet bool
	local bool // pull images here, not on the server
}

func (d *deployment) say(format string, args ...any) {
	if !d.quiet {
		fmt.Fprintf(d.out, format+"\n", args...)
	}
}

func (d *deployment) run(ctx context.Context, ref string, f *appfile.File, detach bool) (api.Release, error) {
	if _, err := d.c.App(ctx, d.app); err != nil {
		return api.Release{}, err
	}
	digest, err := d.image(ctx, ref)
	if err != nil {
		return api.Release{}, err
	}
	if err := d.prepare(ctx, digest); err != nil {
		return api.Release{}, err
	}
	req := f.Release
	req.Image = string(digest)
	for _, cfg := range f.Configs() {
		cfg.Image = ref
	}
	r, err := d.c.CreateRelease(ctx, d.app, req)
	if err != nil {
		return r, err
	}
	d.say("Release %d: %s.", r.Version, r.Status)
	if detach {
		return r, nil
	}
	return d.follow(ctx, r)
}

func (d *deployment) prepare(ctx context.Context, digest volant.Digest) error {
	began := time.Now()
	p := newProgress(d.out, d.quiet)
	err := d.c.Prepare(ctx, digest, func(pr api.Progress) { p.show("Root disk", pr.Done, pr.Total) })
	p.end()
	if err == nil {
		d.say("Root disk ready after %.1f s.", time.Since(began).Seconds())
	}
	return err
}

// follow waits for the outcome of a release and tells each change.
func (d *deployment) follow(ctx context.Context, r api.Release) (api.Release, error) {
	last := r.Status
	for {
		now, err := d.c.Release(ctx, d.app, r.Version)
		if err != nil {
			return r, err
		}
		if now.Status != last {
			d.say("Release %d: %s.", now.Version, now.Status)
			last = now.Status
		}
		switch volant.ReleaseStatus(now.Status) {
		case volant.ReleaseComplete:
			return now, nil
		case volant.ReleaseFailed:
			return now, fmt.Errorf("release %d failed, and what served before serves on: %s; see `volant why %s --kind deploy` and `volant logs %s`", now.Version, now.Reason, d.app, d.app)
		default: // pending, running, or what a newer server calls it: look again
		}
		select {
		case <-ctx.Done():
			return now, fmt.Errorf("release %d goes on without this command: %w; see `volant releases %s`", now.Version, ctx.Err(), d.app)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// progress shows how far a long work is: in place on a terminal, else once in ten seconds.
type progress struct {
	w     io.Writer
	quiet bool
	tty   bool
	last  time.Time
	shown bool
}

func newProgress(w io.Writer, quiet bool) *progress {
	p := &progress{w: w, quiet: quiet, last: time.Now()}
	if f, ok := w.(*os.File); ok {
		st, err := f.Stat()
		p.tty = err == nil && st.Mode()&os.ModeCharDevice != 0
	}
	return p
}

func (p *progress) show(what string, done, total int64) {
	every := 10 * time.Second
	if p.tty {
		every = 100 * time.Millisecond
	}
	if p.quiet || total <= 0 || time.Since(p.last) < every {
		return
	}
	p.last, p.shown = time.Now(), true
	end := "\n"
	if p.tty {
		end = "\r"
	}
	fmt.Fprintf(p.w, "%s: %s of %s (%d %%)   %s", what, size(done), size(total), done*100/total, end)
}

func (p *progress) end() {
	if p.shown && p.tty {
		fmt.Fprintln(p.w)
	}
}

func size(n int64) string {
	switch {
	case n == 0:
		return "0"
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
}
