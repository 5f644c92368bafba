package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/appfile"
)

// deployFlags are what a deploy says beside the config file.
type deployFlags struct {
	app      appFlag
	image    string
	config   string
	region   string
	strategy string
	wait     time.Duration
	env      []string
	allow    bool
	local    bool
	detach   bool
	from     uint64
}

const imageKinds = "[REGISTRY/]NAME[:TAG], docker-archive:FILE, oci-archive:FILE or oci:DIR"

func newDeploy(g *globals) *cobra.Command {
	var f deployFlags
	cmd := &cobra.Command{
		Use: "deploy", Args: cobra.NoArgs,
		Short: "Bring an image and a config into service, without closing a connection",
		Long: `Bring an image and a config into service, without closing a connection.

The deploy runs on the server: where this command is interrupted, it goes on. What the server decides is told as
it happens. A machine of the new release that ends before it serves is told at once, with its last lines.

` + imageForms,
		Example: `  volant deploy --image oci-archive:web.tar
  volant deploy --app web --image registry.example/web:2 --strategy canary --env MODE=production`,
		RunE: g.ask(func(c *call) error { return c.deploy(&f) }),
	}
	f.app.add(cmd)
	fl := cmd.Flags()
	fl.StringVarP(&f.image, "image", "i", "", imageKinds)
	fl.StringVarP(&f.config, "config", "c", "", "the app's config file (default: volant.toml here, or fly.toml)")
	fl.StringVarP(&f.region, "region", "r", "", "in place of the config's primary_region")
	fl.StringVar(&f.strategy, "strategy", "", "in place of the config's: rolling, canary, bluegreen, immediate")
	fl.DurationVar(&f.wait, "wait-timeout", 0, "in place of the config's: how long one new machine may take to serve")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "NAME=VALUE beside the config's [env]; may be given several times")
	fl.BoolVar(&f.allow, "allow-unsupported", false, "only warn of keys of the config that are not acted on")
	fl.BoolVar(&f.local, "local", false, "pull the image on this machine and upload it, instead of letting the server pull it")
	fl.Uint64Var(&f.from, "from-release", 0, "bring the image and config of an earlier release back, and read no file")
	fl.BoolVar(&f.detach, "detach", false, "do not wait for the outcome")
	return cmd
}

// deploy reads the config, uploads the image, makes the release and follows it.
func (c *call) deploy(f *deployFlags) error {
	if f.from != 0 {
		return c.back(f)
	}
	file, name, err := readAppfile(f.config, appfile.Options{
		AllowUnsupported: f.allow, HasImage: f.image != "", Region: volant.Region(f.region),
	})
	if err != nil {
		return err
	}
	d := &deployment{call: c, app: f.app.name, out: c.cmd.ErrOrStderr(), local: f.local}
	if d.app == "" {
		d.app = file.App
	}
	if d.app == "" {
		return volant.Invalidf("which app?").WithRemedy("name it with --app, or with app = \"NAME\" in the config")
	}
	if !c.json {
		warn(d.out, file)
	}
	ref := f.image
	if ref == "" {
		ref = file.Image
	}
	if ref == "" {
		return volant.Invalidf("which image?").WithRemedy("name it with --image, or as image in [build] of the config: %s", imageKinds)
	}
	app, err := c.App(c.ctx, d.app)
	if err != nil {
		return err
	}
	if name == "" && app.Release > 0 {
		return volant.Invalidf("there is no config file here, and without one release %d of %s would lose its services", app.Release, d.app).
			WithRemedy("name the file with --config")
	}
	d.org = app.Organization.Slug
	if err := f.apply(file); err != nil {
		return err
	}
	r, err := d.run(ref, file, f.detach)
	if err != nil {
		return err
	}
	return c.say(r, func(w io.Writer) { deployed(w, d.app, r) })
}

// back makes a release of an earlier one.
func (c *call) back(f *deployFlags) error {
	app, err := f.app.of(nil)
	if err != nil {
		return err
	}
	for _, flag := range []string{"image", "config", "region", "strategy", "env"} {
		if c.cmd.Flags().Changed(flag) {
			return volant.Invalidf("--%s has no meaning beside --from-release", flag).WithRemedy("leave one of them out")
		}
	}
	r, err := c.CreateRelease(c.ctx, app, api.CreateRelease{FromRelease: f.from, WaitTimeout: volant.Duration(f.wait)})
	if err != nil {
		return err
	}
	d := &deployment{call: c, app: app, out: c.cmd.ErrOrStderr()}
	d.sayf("Release %d is release %d again: %s.", r.Version, f.from, r.Status)
	if !f.detach {
		if r, err = d.follow(r); err != nil {
			return err
		}
	}
	return c.say(r, func(w io.Writer) { deployed(w, app, r) })
}

// apply brings what the flags say into what the file says.
func (f *deployFlags) apply(file *appfile.File) error {
	r := &file.Release
	if f.region != "" {
		r.PrimaryRegion = volant.Region(f.region)
	}
	if f.strategy != "" {
		r.Strategy = f.strategy
	}
	if f.wait != 0 {
		r.WaitTimeout = volant.Duration(f.wait)
	}
	for _, kv := range f.env {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			return volant.Invalidf("--env %q names no value", kv).WithRemedy("write --env NAME=VALUE")
		}
		for _, cfg := range file.Configs() {
			if cfg.Env == nil {
				cfg.Env = map[string]string{}
			}
			cfg.Env[name] = value
		}
	}
	return nil
}

func deployed(w io.Writer, app string, r api.Release) {
	fmt.Fprintf(w, "Release %d of %s is %s.\n", r.Version, app, r.Status)
	if len(r.Addresses) > 0 {
		fmt.Fprintf(w, "Reach it at %s\n", strings.Join(r.Addresses, " and "))
	}
}
