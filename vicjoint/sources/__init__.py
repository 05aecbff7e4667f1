"""Sources: where samples are. A source lists them; reading is the modality's work.

source = VideoFolder("/data/clips")
source.train, source.test        # lists of {"id": relative path, "path": absolute path, ...other columns}
source.describe()                # "video_folder /data/clips: 498 train, 102 test videos"
"""

from vicjoint.sources import hugging_face, image_folder, mixed, sequences, shards, table, video_folder
