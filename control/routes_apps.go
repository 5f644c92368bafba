package control

import (
	"net/http"

	"github.com/volant-edge/volant/api"
)

// appRoutes are apps, their scale, addresses and logs.
func (s *Server) appRoutes() []Route {
	return []Route{
		at("GET /v1/apps", scopeRead, "app.list", s.listApps, "List the apps the token may see", nil, ok(api.AppList{}),
			query("org_slug", "string", "only apps of this organization")),
		at("POST /v1/apps", scopeDeploy, "app.create", s.createApp, "Create an app", api.CreateApp{}, created(api.CreatedApp{})),
		at("GET /v1/apps/{app}", scopeRead, "app.get", s.getApp, "Read an app", nil, ok(api.App{})),
		at("DELETE /v1/apps/{app}", scopeDeploy, "app.destroy", s.destroyApp, "Destroy an app with its machines", nil, empty(http.StatusAccepted),
			query("force", "boolean", "also where machines run")),
		at("GET /v1/apps/{app}/scale", scopeRead, "scale.get", s.getScale, "Read how an app scales, and what it holds", nil, ok(api.Scale{})),
		at("PATCH /v1/apps/{app}/scale", scopeDeploy, "scale.set", s.patchScale, "Change how an app scales", api.ScalePatch{}, ok(api.Scale{}),
			query("group", "string", "the process group meant; the default one if empty")),
		at("GET /v1/apps/{app}/logs", scopeRead, "app.logs", s.logs, "Stream the logs of an app's machines", nil, stream(api.LogEntry{}),
			query("machine", "string", "only of this machine"),
			query("tail", "integer", "how many past lines, 0 to 10000; 100"),
			query("since", "string", "only lines from this time on (RFC 3339), or from so long ago, such as 10m"),
			query("no_events", "boolean", "leave out what the platform did; those lines have the source volant"),
			query("follow", "boolean", "go on with new lines")),
	}
}

// releaseRoutes are releases and the images they are made of.
func (s *Server) releaseRoutes() []Route {
	return []Route{
		at("GET /v1/apps/{app}/releases", scopeRead, "release.list", s.listReleases, "List releases, newest first", nil, ok([]api.Release{})),
		at("POST /v1/apps/{app}/releases", scopeDeploy, "release.create", s.createRelease, "Deploy: create a release", api.CreateRelease{}, created(api.Release{})),
		at("GET /v1/apps/{app}/releases/{version}", scopeRead, "release.get", s.getRelease, "Read a release", nil, ok(api.Release{})),

		at("HEAD /v1/blobs/{digest}", scopeDeploy, "blob.has", s.hasBlob, "Ask whether a blob is here", nil, empty(http.StatusOK)),
		at("PUT /v1/blobs/{digest}", scopeDeploy, "blob.put", s.putBlob, "Upload a blob of an image", Bytes{}, empty(http.StatusCreated)),
		at("GET /v1/images", scopeRead, "image.list", s.listImages, "List the tags of the server's own registry", nil, ok(api.ImageList{}),
			query("org_slug", "string", "only those of this organization")),
		at("POST /v1/images/resolve", scopeDeploy, "image.resolve", s.resolveImage, "Pull an image from a registry", api.ResolveImage{}, stream(api.Progress{})),
		at("POST /v1/images/{digest}/prepare", scopeDeploy, "image.prepare", s.prepareImage, "Build the root disk of an uploaded image", nil, stream(api.Progress{})),
	}
}
