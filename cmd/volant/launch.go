package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/appfile"
	"github.com/volant-edge/volant/image"
)

// launch is what `volant launch` writes a config file of.
type launch struct {
	name, image, region, org string
	port                     int
	force, deploy            bool
}

func newLaunch(g *globals) *cobra.Command {
	var l launch
	cmd := &cobra.Command{
		Use: "launch", Args: cobra.NoArgs,
		Short: "Write a volant.toml for an image, and with --now make the app and deploy it",
		Example: `  volant launch --image oci-archive:web.tar --now
  volant launch --image registry.example/web:1 --name shop --internal-port 3000`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := l.write(); err != nil {
				return err
			}
			if !l.deploy {
				next := map[string]string{"app": l.name, "file": appfile.Names[0]}
				return g.print(cmd, next, func(w io.Writer) {
					fmt.Fprintf(w, "Wrote %s for the app %s.\nNext: volant apps create %s && volant deploy\n", appfile.Names[0], l.name, l.name)
				})
			}
			return g.ask(func(c *call) error { return c.launch(&l) })(cmd, args)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&l.image, "image", "i", "", imageKinds)
	f.StringVar(&l.name, "name", "", "the app's name (default: after the image)")
	f.IntVar(&l.port, "internal-port", 0, "the port that the app listens on (default: the one the image exposes, else 8080)")
	f.StringVarP(&l.region, "region", "r", "", "the app's primary region")
	f.StringVarP(&l.org, "org", "o", "personal", "organization that owns the app")
	f.BoolVar(&l.force, "force", false, "replace the volant.toml that is here")
	f.BoolVar(&l.deploy, "now", false, "make the app and deploy it")
	return cmd
}

func (c *call) launch(l *launch) error {
	_, err := c.CreateApp(c.ctx, l.name, l.org)
	if err != nil && !errors.Is(err, volant.ErrExists) {
		return err
	}
	return c.deploy(&deployFlags{config: appfile.Names[0]})
}

// write writes the config file.
func (l *launch) write() error {
	if l.image == "" {
		return volant.Invalidf("which image?").WithRemedy("name it with --image: %s", imageKinds)
	}
	if err := l.lookIn(); err != nil {
		return err
	}
	if err := volant.CheckAppName(l.name); err != nil {
		return err
	}
	if l.region != "" && !volant.Region(l.region).Valid() {
		return volant.Invalidf("region %q: use a code such as \"ams\"", l.region)
	}
	if l.port < 1 || l.port > 65535 {
		return volant.Invalidf("--internal-port is %d: use 1 to 65535", l.port)
	}
	name := appfile.Names[0]
	flags := os.O_CREATE | os.O_WRONLY | os.O_EXCL
	if l.force {
		flags = os.O_CREATE | os.O_WRONLY | os.O_TRUNC
	}
	f, err := os.OpenFile(name, flags, 0o644) //nolint:gosec // a config file is for all to read
	if errors.Is(err, os.ErrExist) {
		return volant.Errorf(volant.ErrExists, "there is a %s here", name).WithRemedy("deploy it with `volant deploy`, or replace it by --force")
	}
	if err != nil {
		return err
	}
	if _, err := f.WriteString(l.text()); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// lookIn fills in what the image's reference and the image itself say.
func (l *launch) lookIn() error {
	if image.IsFile(l.image) {
		src, err := image.OpenSource(l.image)
		if err != nil {
			return err
		}
		if l.port == 0 {
			l.port = firstPort(src.Exposed())
		}
		if err := src.Close(); err != nil {
			return err
		}
	}
	if l.port == 0 {
		l.port = 8080
	}
	if l.name == "" {
		l.name = nameAfter(l.image)
	}
	return nil
}

// firstPort is the first TCP port that an image exposes, or 0.
func firstPort(exposed []string) int {
	for _, e := range exposed {
		port, proto, _ := strings.Cut(e, "/")
		if n, err := strconv.Atoi(port); err == nil && (proto == "" || proto == "tcp") {
			return n
		}
	}
	return 0
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// nameAfter makes an app's name of an image's reference.
func nameAfter(ref string) string {
	if image.IsFile(ref) {
		_, ref, _ = strings.Cut(ref, ":")
	}
	ref = filepath.Base(ref)
	ref, _, _ = strings.Cut(ref, "@")
	ref, _, _ = strings.Cut(ref, ":")
	ref = strings.TrimSuffix(strings.TrimSuffix(ref, ".gz"), ".tar")
	name := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(ref), "-"), "-")
	return name[:min(len(name), 63)]
}

func (l *launch) text() string {
	region := ""
	if l.region != "" {
		region = fmt.Sprintf("primary_region = %q\n", l.region)
	}
	return fmt.Sprintf(`# The keys are those of fly.toml; see docs/guide/volant-toml.md.
app = %q
%s
[build]
image = %q

[http_service]
internal_port = %d                # where the app listens in its machine
force_https = true
auto_stop_machines = "suspend"      # idle machines sleep, and the next connection wakes them
min_machines_running = 0

[[vm]]
size = "shared-cpu-1x"
memory = "512mb"
`, l.name, region, l.image, l.port)
}
